"""The spiking mind: populations of neurons, wired by sparse synapses into regions."""
