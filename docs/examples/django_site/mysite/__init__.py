"""A little Django project, laid out as ``django-admin startproject mysite`` does."""
