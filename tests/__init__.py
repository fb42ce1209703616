"""Tests of lightvl."""
