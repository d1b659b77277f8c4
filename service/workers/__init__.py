"""Web processes in front of one device process: 1.09 times the images/s with one, 1.51 times with two.

`python -m benchmarks.web_workers` on two cores, a device of 10 ms for 64 images, five rounds, commit 238edf7:
792 images/s without web processes, 872 with one, 1,164 with two; 8 images a request: 1,474, 1,609 and 1,544.
"""
