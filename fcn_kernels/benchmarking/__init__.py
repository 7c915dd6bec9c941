"""What `fcn-kernels bench` and the suites in benchmarks/ share: workloads by name, rivals, measuring."""
