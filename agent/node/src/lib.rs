//! The device agent: the loop that composes pod, runtime, image, network and volume; the ingress where TLS ends.
