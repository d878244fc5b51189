"""The embedded default: a small teacher, a student that forgot, and digits, built on this machine."""
