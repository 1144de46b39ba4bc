"""Settings: what may be set (`schema`), how a YAML and its overrides become it (`load`), old flags (`legacy_flags`)."""
