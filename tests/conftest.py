"""Settings that all tests share."""

from hypothesis import settings

# Examples are the same in every run, and a busy machine is not a failure.
settings.register_profile("lightvl", deadline=None, derandomize=True)
settings.load_profile("lightvl")
