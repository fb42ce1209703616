#!/bin/sh
# Asks a running server about a picture: examples/curl.sh [PICTURE [QUESTION [SERVER]]]
set -eu
picture=${1:-$(dirname "$0")/face.png}
question=${2:-What is this?}
server=${3:-http://127.0.0.1:8000}

# The body goes through a pipe: a picture is longer than a command line may be.
curl --silent --show-error --fail-with-body "$server/v1/chat/completions" \
    --header 'Content-Type: application/json' --data @- <<END
{"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": [
  {"type": "image_url", "image_url": {"url": "data:;base64,$(base64 <"$picture" | tr -d '\n')"}},
  {"type": "text", "text": "$question"}]}]}
END
echo
