"""A simulated cloud around one machine: instance metadata, the AWS API, a scratch disk root and a real supervisor."""
