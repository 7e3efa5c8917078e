"""Energy-based models: unnormalised densities, sampled by Markov chains."""
