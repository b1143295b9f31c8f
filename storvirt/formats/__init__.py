"""Files that disks come from and go to, by what is in them. Pure."""
