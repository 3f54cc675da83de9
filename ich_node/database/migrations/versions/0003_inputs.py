"""What the input of a reading was like, and readings by time to watch it drift"""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('reading', sa.Column('input_features', sa.JSON(), nullable=True))
    op.add_column('reading', sa.Column('unlike_training', sa.JSON(), nullable=True))
    op.create_index('reading_by_read_at', 'reading', ['read_at'], unique=False)
