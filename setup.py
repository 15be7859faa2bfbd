"""Shim for tools that still ask for a setup.py; pyproject.toml holds everything."""

from setuptools import setup

setup()
