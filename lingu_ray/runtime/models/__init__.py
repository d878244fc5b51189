"""The settings' models: loaded, checked, exported, and an export proved."""
