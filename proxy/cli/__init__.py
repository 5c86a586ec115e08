"""The command line: `cloudrun-sidecar COMMAND`; one file a command."""
