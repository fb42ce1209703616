"""Pictures and prompts in the front process, and the media workers; torch-free."""
