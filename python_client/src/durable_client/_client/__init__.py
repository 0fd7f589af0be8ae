"""What talks to the database: the SQL, the connections, and the clients that ask from outside of workflows."""
