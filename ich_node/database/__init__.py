"""The truth: SQL tables, one query module per topic, migrations."""
