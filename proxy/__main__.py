"""`python -m proxy` is `cloudrun-sidecar`."""

from proxy.cli import main

if __name__ == "__main__":
    main()
