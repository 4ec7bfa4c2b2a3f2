"""What runs beside the pages: uploads, trainings, logs."""
