"""The operations whose formulation decides the speed: convolution and pooling."""
