"""The worklist's order in an index; audit, access and review can only be added to"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


PRECEDENCE = (
    "CASE WHEN reviewed_at IS NULL THEN 4 ELSE 0 END + "
    "CASE priority WHEN 'STAT' THEN 3 WHEN 'HIGH' THEN 2 WHEN 'MEDIUM' THEN 1 ELSE 0 END"
)
ONLY_GROW = ('audit', 'access', 'review')


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == 'sqlite'
    # SQLite adds only what it need not write into each row; an index keeps it all the same.
    kept = 'VIRTUAL' if sqlite else 'STORED'
    op.execute(f'ALTER TABLE study ADD COLUMN precedence SMALLINT GENERATED ALWAYS AS ({PRECEDENCE}) {kept} NOT NULL')
    op.drop_index('study_by_priority', table_name='study')
    op.drop_index('study_by_state', table_name='study')
    op.create_index('study_by_precedence', 'study', ['precedence', 'received_at', 'study_instance_uid'])
    op.create_index('study_by_state', 'study', ['state', 'precedence', 'received_at', 'study_instance_uid'])
    op.create_index('study_by_modality_ae_title', 'study',
                    ['modality_ae_title', 'precedence', 'received_at', 'study_instance_uid'])
    op.create_index('study_by_received_at', 'study', ['received_at'])
    op.create_index('study_by_study_date', 'study', ['study_date'])
    op.create_index('study_by_patient_name', 'study',
                    ['patient_name', 'patient_id', 'accession_number', 'study_instance_uid'])
    if sqlite:
        guard_sqlite()
    else:
        guard_postgresql()


def guard_sqlite() -> None:
    for table in ONLY_GROW:
        refuse = f"BEGIN SELECT RAISE(ABORT, '{table} is only ever added to'); END"
        for change in ('UPDATE', 'DELETE'):
            op.execute(f'CREATE TRIGGER {table}_refuses_{change.lower()} BEFORE {change} ON {table} {refuse}')
        # INSERT OR REPLACE takes a row away without a trigger of DELETE.
        op.execute(
            f'CREATE TRIGGER {table}_refuses_replace BEFORE INSERT ON {table} '
            f'WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id) {refuse}'
        )


def guard_postgresql() -> None:
    op.execute("""
        CREATE FUNCTION only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is only ever added to', TG_TABLE_NAME;
        END
        $$
    """)
    for table in ONLY_GROW:
        op.execute(f'CREATE TRIGGER {table}_only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} '
                   'FOR EACH STATEMENT EXECUTE FUNCTION only_grows()')
