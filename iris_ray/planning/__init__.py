"""What a run will do, told beforehand: memory, rates, and a simulation of the service on given hardware."""
