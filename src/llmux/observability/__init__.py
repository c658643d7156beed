"""What llmux tells of itself: logs and metrics."""
