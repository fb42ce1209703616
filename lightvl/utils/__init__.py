"""Small tools that know nothing of models or requests: environment, logs, channel, memory."""
