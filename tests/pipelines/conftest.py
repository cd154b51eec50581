"""Databases of the tests do not wait for the disk."""

import unsynchronised

unsynchronised.sqlite()
