"""Pictures inside the rank process: tiles through the tower, embeddings kept in the arena."""
