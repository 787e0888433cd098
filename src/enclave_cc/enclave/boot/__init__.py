"""Program 2: takes the keys, mounts the image, starts the workload."""
