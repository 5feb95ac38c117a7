"""The precision card: what mindglm computes on this device, beside the public reference's numbers, tensor by tensor."""
