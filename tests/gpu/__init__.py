"""What only a GPU can show; skipped where torch sees none."""
