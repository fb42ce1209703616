"""Small tools without knowledge of models or requests: environment, logs, channel, shared memory."""
