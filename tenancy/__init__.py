"""The shared tenant model and the fabric database that holds it.

Both halves of virtkit stand on this package and it knows neither: tenants, their quotas, the
connection to the database, and the manners that the commands have in common.
"""
