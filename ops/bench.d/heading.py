"""Prints the heading of a benchmark that is no Python program. Usage: heading.py BIN-DIR WHAT"""
import sys

from parts import heading

heading(sys.argv[2], sys.argv[1])
