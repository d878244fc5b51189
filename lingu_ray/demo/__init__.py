"""The demo: a small teacher, a student that forgot its language, and their data, all built on this machine."""
