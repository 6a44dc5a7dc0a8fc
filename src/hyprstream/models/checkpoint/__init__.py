"""Files to named tensors: mapped, validated, never copied without need."""
