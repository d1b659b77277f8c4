"""The service on Ray Serve: replicas with one device each, behind Ray's HTTP proxies."""
