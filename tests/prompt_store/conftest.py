from tests.prompt_store.places import moto_port, place, proxy, s3_place

__all__ = ["moto_port", "place", "proxy", "s3_place"]
