"""What one exchange is (`exchange`, pure), and how it is carried across (`carrier`, `forwarder`)."""
