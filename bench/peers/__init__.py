"""The net behind other servers: as their own tutorials do it, and with our engine and decoding.

Each is one file that runs by itself, in an environment of its own. BENCH_KIND says which of the
two it shall be, BENCH_PORT where it listens.
"""
