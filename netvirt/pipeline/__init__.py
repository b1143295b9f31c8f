"""The pipeline of br-int as data: tables, fields, and the flows that each object needs. Pure."""
