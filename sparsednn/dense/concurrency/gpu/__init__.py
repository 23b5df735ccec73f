"""Concurrent execution on a GPU: lanes are streams. **It has not run on a device yet.**"""
