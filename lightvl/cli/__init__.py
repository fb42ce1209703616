"""The command `lightvl`: serve, chat, bench and doctor. Nothing here imports torch."""
