"""What changes the registry: register, promote, roll back, sign, remove, rebuild."""
