"""The figures of the pages: functions from tables to Plotly figures."""
