"""Tests by random actions against simple models."""
