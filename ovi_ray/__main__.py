"""`python -m ovi_ray` is `ovi-ray`."""

from ovi_ray.cli import main

if __name__ == "__main__":
    main()
