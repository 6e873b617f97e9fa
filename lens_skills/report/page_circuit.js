// circuit
