"""lightvl: a server for vision-language models."""
