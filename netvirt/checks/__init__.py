"""What the doctor looks for in a fabric and on a host. Pure: facts in, findings out."""
