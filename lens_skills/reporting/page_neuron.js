// neuron
