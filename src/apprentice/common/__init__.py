"""What any room may use: errors, files, devices, processes, progress, flags."""
